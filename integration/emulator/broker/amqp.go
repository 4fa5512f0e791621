package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

type amqpTransport struct {
	c      *amqp.Connection
	ch     *amqp.Channel
	closed chan *amqp.Error
}

func dialAMQP(ctx context.Context, url string) (transport, error) {
	var d net.Dialer
	c, err := amqp.DialConfig(url, amqp.Config{
		Heartbeat:  3 * time.Second,
		Locale:     "en_US",
		Properties: amqp.Table{"connection_name": "emulated API Manager"},
		Dial: func(network, addr string) (net.Conn, error) {
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			// The handshake has to end too; the library clears the deadline after it.
			return conn, conn.SetDeadline(time.Now().Add(5 * time.Second))
		},
	})
	if err != nil {
		return nil, fmt.Errorf("event hub: connect to the AMQP broker: %w", err)
	}
	ch, err := c.Channel()
	if err != nil {
		_ = c.Close() // what it failed with is said
		return nil, fmt.Errorf("event hub: open an AMQP channel: %w", err)
	}
	return &amqpTransport{c: c, ch: ch, closed: ch.NotifyClose(make(chan *amqp.Error, 1))}, nil
}

// send publishes with the properties of the manager's own publisher (contract events.md 9); user-id stays empty because
// RabbitMQ checks it, expiration because RabbitMQ refuses Andes' empty text.
func (t *amqpTransport) send(ctx context.Context, m Message) error {
	select {
	case err := <-t.closed:
		if err != nil {
			return fmt.Errorf("event hub: the AMQP channel is closed: %w", err)
		}
		return errors.New("event hub: the AMQP channel is closed")
	default:
	}
	p := amqp.Publishing{
		ContentType:     m.ContentType,
		ContentEncoding: m.ContentEncoding,
		DeliveryMode:    2,
		Priority:        4,
		MessageId:       "ID:" + uuid.NewString(),
		Body:            m.Body,
	}
	if m.TimestampMillis != 0 {
		p.Timestamp = time.Unix(m.TimestampMillis, 0) // Andes writes milliseconds where the protocol says seconds
	}
	if !m.NoHeaders {
		p.Headers = amqp.Table{"JMS_QPID_DESTTYPE": int32(2)}
	}
	return t.ch.PublishWithContext(ctx, "amq.topic", m.Topic, false, false, p)
}

func (t *amqpTransport) flush(context.Context) error { return nil } // each send writes to the socket

func (t *amqpTransport) close() { _ = t.c.Close() } // nothing is waited for any more
