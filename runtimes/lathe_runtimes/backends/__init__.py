"""What runs a model inside the server, one module per library."""
