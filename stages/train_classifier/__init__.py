"""A model fitted to labels: one file a paper beside the stage."""
