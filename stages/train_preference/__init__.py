"""A model taught what readers prefer: one file a paper beside the stage."""
