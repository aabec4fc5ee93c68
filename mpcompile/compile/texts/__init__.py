"""The user's texts: read, checked, tokenized and split."""
