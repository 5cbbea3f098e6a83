"""Search: which combinations a document allows, which are tried, and which one is taken."""
