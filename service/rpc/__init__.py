"""The gRPC endpoint: the chain every call passes, the token check, and the translation to and from the wire."""
