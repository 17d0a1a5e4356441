// A chatbot's submission: save a lead, repeat it, read it masked, and decide by what an error says.
//
// Printed are ids, states, names of fields and reasons: never a message, whose text shows every value.
package main

//go:generate sh -c "GOBIN=$PWD/gen/bin go install tool"
//go:generate sh -c "mkdir -p gen/policy && cp ../../clients/policy/*.json gen/policy"
//go:generate sh -c "PATH=$PWD/gen/bin:$PATH protoc -I ../../protos --go_out=gen --go_opt=paths=source_relative --go-grpc_out=gen --go-grpc_opt=paths=source_relative ../../protos/leadkeep/v1/*.proto"

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/big"
	"os"
	"strings"

	"google.golang.org/grpc"

	pb "leadkeep.internal/examples/go/gen/leadkeep/v1"
)

func run(leads pb.LeadServiceClient) error {
	ctx := context.Background()
	number, err := rand.Int(rand.Reader, big.NewInt(100_000_000))
	if err != nil {
		return err
	}
	lead := &pb.Lead{
		Name:             "Anika Rahman",
		Phone:            fmt.Sprintf("+88018%08d", number),
		Nid:              fmt.Sprintf("20%011d", number),
		Address:          "12 Lake Road, Dhaka",
		InterestedPolicy: "Term Life 20-Year",
		ConversationId:   "go-" + rand.Text(),
	}
	// The idempotency key: made when the customer confirms, before the first attempt, and kept until it is answered.
	submission := &pb.CreateLeadRequest{Lead: lead, RequestId: rand.Text(), Locale: "bn-BD, en"}
	created, err := leads.CreateLead(ctx, submission)
	if err != nil {
		return err
	}
	fmt.Println("created ", created.Id, created.State, created.Confirmation.Reference)

	repeated, err := leads.CreateLead(ctx, submission)
	if err != nil {
		return err
	}
	fmt.Println("repeated", repeated.Id, map[bool]string{true: "is_repeat", false: "ANOTHER LEAD"}[repeated.IsRepeat])

	read, err := leads.GetLead(ctx, &pb.GetLeadRequest{Id: created.Id, View: pb.LeadView_LEAD_VIEW_MASKED})
	if err != nil {
		return err
	}
	fmt.Println("read    ", read.Lead.Id, read.Lead.Status, "masked:", strings.Join(read.Lead.MaskedFields, ","))

	known := &pb.CreateLeadRequest{Lead: lead, RequestId: rand.Text()}
	invalid := &pb.CreateLeadRequest{Lead: &pb.Lead{Name: "Anika Rahman", Phone: "12"}, RequestId: rand.Text()}
	for _, mistake := range []*pb.CreateLeadRequest{known, invalid} {
		_, err := leads.CreateLead(ctx, mistake)
		var refused *Error
		if !errors.As(err, &refused) {
			return err
		}
		advice := map[bool]string{true: "repeat", false: "do not repeat"}[refused.Repeat]
		fmt.Println("refused ", refused, refused.Metadata["fields"], advice)
		for _, each := range refused.Violations {
			fmt.Println("        ", each.Field, each.Reason)
		}
	}
	return nil
}

// connect opens the channel that the arguments describe.
func connect() *grpc.ClientConn {
	address := flag.String("address", "127.0.0.1:50051", "host:port of the service")
	file := flag.String("token-file", "", "file with the token; without, LEADKEEP_TOKEN")
	ca := flag.String("ca", "", "certificate of the service's authority: TLS")
	cert := flag.String("cert", "", "your certificate, for mutual TLS")
	key := flag.String("key", "", "its key")
	flag.Parse()
	read := func() (string, error) {
		if *file == "" {
			return os.Getenv("LEADKEEP_TOKEN"), nil
		}
		text, err := os.ReadFile(*file)
		return strings.TrimSpace(string(text)), err
	}
	channel, err := Connect(*address, read, *ca, *cert, *key)
	if err != nil {
		log.Fatal(err)
	}
	return channel
}
