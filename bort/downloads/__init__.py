"""Files over HTTP that arrive whole or not at all, and archives that somebody else made."""
