"""Images: files, masks, crops, and what is kept of them in memory and in caches."""
