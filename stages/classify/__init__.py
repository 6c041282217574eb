"""What trained readers label: one file a paper beside the stage."""
