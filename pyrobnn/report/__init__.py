"""What `report.json`, `report.html` and the terminal say of a run."""
