// Calls for the tests: a line "NUMBER create PHONE NID" or "NUMBER read ID", an answer "NUMBER CODE REASON ID".
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/code"

	pb "leadkeep.internal/examples/go/gen/leadkeep/v1"
)

func call(leads pb.LeadServiceClient, what []string) (string, error) {
	ctx := context.Background()
	if what[0] == "read" {
		found, err := leads.GetLead(ctx, &pb.GetLeadRequest{Id: what[1], View: pb.LeadView_LEAD_VIEW_MASKED})
		return found.GetLead().GetId(), err
	}
	lead := &pb.Lead{Name: "Anika Rahman", Phone: what[1], Nid: what[2], Address: "12 Lake Road", InterestedPolicy: "Term Life"}
	created, err := leads.CreateLead(ctx, &pb.CreateLeadRequest{Lead: lead, RequestId: rand.Text()})
	return created.GetId(), err
}

func main() {
	channel := connect()
	defer channel.Close()
	leads := pb.NewLeadServiceClient(channel)
	var calls sync.WaitGroup
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		line := strings.Fields(lines.Text())
		calls.Add(1)
		go func() {
			defer calls.Done()
			id, err := call(leads, line[1:])
			var refused *Error
			if !errors.As(err, &refused) {
				fmt.Println(line[0], "OK", "-", id)
				return
			}
			reason := refused.Reason
			if reason == "" {
				reason = "-"
			}
			// The names that the other languages print; those of Go's own type differ.
			fmt.Println(line[0], code.Code(refused.Code), reason, "-")
		}()
	}
	calls.Wait()
}
