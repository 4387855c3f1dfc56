"""The OpenAI API: its pure parts, and the gate around scripted applications."""
