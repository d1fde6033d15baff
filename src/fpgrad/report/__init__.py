"""Reports: plain records in, text out."""
