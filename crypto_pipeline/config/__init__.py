"""pipeline.yaml: its model, and how a mistake in it is told."""
