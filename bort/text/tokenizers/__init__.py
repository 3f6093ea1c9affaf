"""Tokenizers: byte-level BPE, SentencePiece and WordPiece, behind one ``load_tokenizer``."""
