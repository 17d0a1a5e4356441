// A client of Leadkeep: a channel that outlives a restart of the service, a token that is renewed, typed errors.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver/dns"
	"google.golang.org/grpc/status"
)

// deadline is for all attempts of a call together, unless its context ends sooner: a restart of the service fits.
const deadline = 15 * time.Second

//go:embed gen/policy/retry_policy.json
var serviceConfig string

//go:embed gen/policy/reasons.json
var reasons []byte

// mayRepeat is what reasons.json says of each reason: whether the same request may succeed later.
var mayRepeat = map[string]bool{}

func init() {
	dns.SetMinResolutionInterval(1 * time.Second) // for every channel of the program
	var table struct {
		Reasons []struct {
			Reason string
			Repeat bool
		}
	}
	if err := json.Unmarshal(reasons, &table); err != nil {
		panic(err)
	}
	for _, row := range table.Reasons {
		mayRepeat[row.Reason] = row.Repeat
	}
}

// Error is a call that failed. Its text and its fields hold no value of a lead, so it may be logged.
type Error struct {
	Code       codes.Code
	Reason     string // empty: no answer of the service, but of the channel (connection, certificate, time)
	Metadata   map[string]string
	Violations []*errdetails.BadRequest_FieldViolation
	RetryAfter time.Duration
	Repeat     bool // whether the same request, with its request_id, may succeed later
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return e.Code.String() + " (no answer of the service)"
	}
	return e.Code.String() + " " + e.Reason
}

// typed makes an Error of a status, with the details that the service adds. What is no status stays what it is.
func typed(err error) error {
	failed, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	made := &Error{Code: failed.Code()}
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			made.Reason, made.Metadata = detail.Reason, detail.Metadata
		case *errdetails.BadRequest:
			made.Violations = detail.FieldViolations
		case *errdetails.RetryInfo:
			made.RetryAfter = detail.RetryDelay.AsDuration()
		}
	}
	unanswered := []codes.Code{codes.Unavailable, codes.Unknown, codes.Internal, codes.DeadlineExceeded, codes.Canceled}
	made.Repeat = mayRepeat[made.Reason] || made.Reason == "" && slices.Contains(unanswered, made.Code)
	return made
}

// guard gives a call its token, its deadline and its typed error. The channel repeats what may be repeated, as the service
// asks. Left to do here is what no library repeats: an answer that was cut in its midst, or a proxy's page of HTML in its
// place. And a token that had expired is read once more: whatever renews it may have done so meanwhile.
func guard(token func() (string, error)) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, channel *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		attempt := func() error {
			text, err := token()
			if err != nil {
				return err
			}
			named := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+text)
			return typed(invoke(named, method, request, reply, channel, options...))
		}
		for renewed := false; ; {
			err := attempt()
			refused, ok := err.(*Error)
			switch {
			case !ok:
				return err
			case refused.Reason == "TOKEN_EXPIRED" && !renewed:
				renewed = true
			case refused.Reason != "" || !refused.Repeat || !pause(ctx):
				return err
			}
		}
	}
}

// pause waits for about a second, and says whether there is time for another attempt.
func pause(ctx context.Context) bool {
	wait := 500*time.Millisecond + rand.N(time.Second)
	if end, _ := ctx.Deadline(); time.Until(end) < wait {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// Connect opens the channel, which lives as long as your program. token is asked for every call, so it may read a file
// that something else renews. ca turns TLS on; with cert and key, your own certificate, it is mutual.
func Connect(address string, token func() (string, error), ca, cert, key string) (*grpc.ClientConn, error) {
	transport, err := transportOf(ca, cert, key)
	if err != nil {
		return nil, err
	}
	// The values of clients/policy/channel.json.
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(transport),
		grpc.WithUnaryInterceptor(guard(token)),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 1 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
	)
}

func transportOf(ca, cert, key string) (credentials.TransportCredentials, error) {
	if ca == "" {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	authority, err := os.ReadFile(ca)
	if err == nil && !config.RootCAs.AppendCertsFromPEM(authority) {
		err = errors.New(ca + " holds no certificate")
	}
	if err == nil && cert != "" {
		config.Certificates = make([]tls.Certificate, 1)
		config.Certificates[0], err = tls.LoadX509KeyPair(cert, key)
	}
	return credentials.NewTLS(config), err
}
