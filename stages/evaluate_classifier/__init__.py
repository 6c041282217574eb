"""How well they labelled: one file a paper beside the stage."""
