"""Pages and tables about runs: one HTML page about some of them, methods compared."""
