"""The FPTAS for optimal subarchitecture extraction (section 3)."""
