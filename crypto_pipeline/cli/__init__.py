"""The crypto-pipeline command."""
