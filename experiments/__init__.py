"""One module per result of the papers; each ends in claims."""
