"""The load generator: a process of its own that imports neither gRPC nor an HTTP library, so that it is never what is
measured. It speaks just enough HTTP/2 and HTTP/1.1 to send prepared bytes and to tell an answer from a refusal."""
