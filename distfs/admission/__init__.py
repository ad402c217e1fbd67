"""Who may upload, and what room is promised to whom."""
