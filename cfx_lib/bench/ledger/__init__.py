"""The claims of each paper: `CLAIMS`, and `LIVE`, the tables that can be made on a few images in fast mode."""
