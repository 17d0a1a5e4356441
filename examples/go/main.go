package main

import (
	"log"

	pb "leadkeep.internal/examples/go/gen/leadkeep/v1"
)

func main() {
	channel := connect()
	defer channel.Close()
	if err := run(pb.NewLeadServiceClient(channel)); err != nil {
		log.Fatal(err)
	}
}
