"""Model folders and parameter files: found, read, written, inspected, verified, published names."""
