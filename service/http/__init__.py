"""The JSON door: a second thin adapter on the chain that the gRPC door uses. No decision about a lead is taken here."""
