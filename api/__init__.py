"""HTTP in, HTTP out: one module per resource, with its schemas beside it."""
