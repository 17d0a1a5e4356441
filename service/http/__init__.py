"""The JSON endpoint: a thin adapter on the chain that the gRPC endpoint uses. It takes no decision about a lead."""
