"""Explaining folders and lists of pictures: which pictures, what is kept of each, and a run that can be resumed."""
