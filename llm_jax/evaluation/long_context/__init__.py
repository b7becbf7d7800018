"""What a model makes of long texts: its loss by position, and facts that it finds again."""
