"""The steps of the schema, and what they need on SQLite."""
