"""What happens inside: rows in, rows out; no request, no socket."""
