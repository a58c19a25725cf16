// Sends one request to chainwriter and waits for its outcome.
//
//	go run . amqp://guest:guest@127.0.0.1:5672/%2f acme.writes order-1 '{"amount":5}'
//
// Exit codes: 0 the write is final; 1 it is a dead letter; 2 it cannot be sent; 75 the outcome is not known yet: run this
// again with the same id and the same body.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// Outlives each connection, so no outcome is lost with one. One for each service.
	replies        = "orders.outcomes"
	confirmTimeout = 5 * time.Second
	outcomeTimeout = 10 * time.Minute
	pause          = time.Second
)

const (
	final        = 0
	dead         = 1
	cannotBeSent = 2
	unknown      = 75
)

var errUnroutable = errors.New("no queue takes the message")

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: producer BROKER QUEUE ID BODY")
		os.Exit(cannotBeSent)
	}
	ctx, cancel := context.WithTimeout(context.Background(), outcomeTimeout)
	defer cancel()
	os.Exit(run(ctx, os.Args[1], os.Args[2], os.Args[3], []byte(os.Args[4])))
}

func run(ctx context.Context, broker, queue, id string, body []byte) int {
	confirmed := false
	for ctx.Err() == nil {
		code, err := attempt(ctx, broker, queue, id, body, &confirmed)
		switch {
		case err == nil:
			return code
		case errors.Is(err, errUnroutable):
			fmt.Printf("%s: there is no queue %s\n", id, queue)
			return cannotBeSent
		case confirmed:
			fmt.Printf("%s: lost the connection (%v)\n", id, err)
		default:
			// The broker may have the message or not. Sent again with the same id and body, it is written once.
			fmt.Printf("%s: no confirm, sending it again (%v)\n", id, err)
		}
		time.Sleep(pause)
	}
	return unknown
}

// attempt does over one connection what is left to do.
func attempt(ctx context.Context, broker, queue, id string, body []byte, confirmed *bool) (int, error) {
	connection, err := amqp.DialConfig(broker, amqp.Config{
		Heartbeat: 10 * time.Second,
		Dial: func(network, address string) (net.Conn, error) {
			return amqp.DefaultDial(confirmTimeout)(network, address)
		},
	})
	if err != nil {
		return 0, err
	}
	// With a deadline: a connection that answers nothing would not close either.
	defer func() { _ = connection.CloseDeadline(time.Now().Add(time.Second)) }()
	channel, err := connection.Channel()
	if err != nil {
		return 0, err
	}
	if _, err := channel.QueueDeclare(replies, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return 0, err
	}
	if !*confirmed {
		if err := publish(ctx, channel, queue, id, body); err != nil {
			return 0, err
		}
		*confirmed = true
	}
	return waitForOutcome(ctx, channel, id)
}

// publish returns once the broker has the message on its disks.
func publish(ctx context.Context, channel *amqp.Channel, queue, id string, body []byte) error {
	if err := channel.Confirm(false); err != nil {
		return err
	}
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	mandatory, immediate := true, false
	confirm, err := channel.PublishWithDeferredConfirmWithContext(ctx, "", queue, mandatory, immediate, amqp.Publishing{
		MessageId:     id,      // the same for each copy of this request, another for each new one
		Type:          "order", // routes go by it
		ContentType:   "application/json",
		DeliveryMode:  amqp.Persistent,
		ReplyTo:       replies,
		CorrelationId: id,
		Body:          body,
	})
	if err != nil {
		return err
	}
	acked, err := confirm.WaitContext(ctx)
	if err != nil {
		return err
	}
	if !acked {
		return errors.New("refused, or the connection was lost")
	}
	select {
	case _, returned := <-returns: // comes before the confirm; closed with the connection
		if returned {
			return errUnroutable
		}
	default:
	}
	return nil
}

func waitForOutcome(ctx context.Context, channel *amqp.Channel, id string) (int, error) {
	deliveries, err := channel.ConsumeWithContext(ctx, replies, "", false, false, false, false, nil)
	if err != nil {
		return 0, err
	}
	seen := map[string]bool{} // an event comes at least once; a service keeps the ids where it keeps its orders
	for delivery := range deliveries {
		var event event
		if err := json.Unmarshal(delivery.Body, &event); err != nil {
			return 0, err
		}
		code, isLast := 0, false
		if !seen[event.ID] {
			seen[event.ID] = true
			code, isLast = event.handle()
		}
		if err := delivery.Ack(false); err != nil {
			return 0, err
		}
		if isLast && event.Subject == id {
			return code, nil
		}
	}
	if ctx.Err() != nil {
		return unknown, nil
	}
	return 0, amqp.ErrClosed
}

// event is a CloudEvent, as far as it is used here.
type event struct {
	ID      string `json:"id"`
	Type    string `json:"type"` // io.chainwriter.request.final.v1
	Subject string `json:"subject"`
	Data    struct {
		Transaction struct {
			TxHash      string `json:"tx_hash"`
			BlockNumber uint64 `json:"block_number"`
		} `json:"transaction"`
		Error struct {
			Class  string `json:"class"`
			Reason string `json:"reason"`
			Detail string `json:"detail"`
		} `json:"error"`
	} `json:"data"`
}

// handle prints the event, where a service stores it. It returns the exit code if the event is the last one.
func (e event) handle() (code int, isLast bool) {
	kind := strings.TrimSuffix(strings.TrimPrefix(e.Type, "io.chainwriter.request."), ".v1")
	switch kind {
	case "final":
		fmt.Printf("%s: final in block %d, %s\n", e.Subject, e.Data.Transaction.BlockNumber, e.Data.Transaction.TxHash)
		return final, true
	case "dead":
		fmt.Printf("%s: dead, %s.%s: %s\n", e.Subject, e.Data.Error.Class, e.Data.Error.Reason, e.Data.Error.Detail)
		return dead, true
	default:
		fmt.Printf("%s: %s\n", e.Subject, kind) // "retry": chainwriter tries again by itself
		return 0, false
	}
}
