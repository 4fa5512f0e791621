package amqp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
)

// exchange is the one topic exchange of the event hub; every broker has it declared.
const exchange = "amq.topic"

// subscription is one topic: its own channel, its own queue. Andes binds a queue to one topic only.
type subscription struct {
	topic      string
	deliveries <-chan amqp091.Delivery
	closed     <-chan *amqp091.Error
	cancelled  <-chan string
}

// session connects to one broker and delivers until the connection, any channel or any consumer ends, or ctx is done.
// Connected is true when every topic was consumed from; err is never nil.
func (s *Source) session(ctx context.Context, b brokerurl.Broker, h eventsource.Handler, states *stateFilter) (connected bool, err error) {
	conn, err := s.dial(ctx, b)
	if err != nil {
		s.metrics.connects("failed")
		return false, fmt.Errorf("connect to %s: %w", b.Address, err)
	}
	// On a half-open socket close-ok never comes; the deadline ends the wait.
	defer func() { _ = conn.CloseDeadline(time.Now().Add(closeTimeout)) }()
	closed := conn.NotifyClose(make(chan *amqp091.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp091.Blocking, 8))
	// Calls on channels wait for the broker without a limit of their own.
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now().Add(closeTimeout)) })
	defer stop()

	subscriptions := make([]subscription, 0, len(s.o.Topics))
	for _, topic := range s.o.Topics {
		sub, err := s.subscribe(conn, topic)
		if err != nil {
			s.metrics.connects("failed")
			return false, fmt.Errorf("subscribe to topic %s at %s: %w", topic, b.Address, err)
		}
		subscriptions = append(subscriptions, sub)
	}
	s.metrics.connects("connected")
	s.metrics.connected(true)
	defer s.metrics.connected(false)
	s.log.Info().Stringer("broker", b).Strs("topics", s.o.Topics).Msg("event source is connected")
	// From here on nothing that is published can be missed. The first message follows the state.
	states.report(eventsource.State{Kind: eventsource.Connected, Address: b.Address})

	var consumers sync.WaitGroup
	done := make(chan struct{})
	ended := make(chan error, len(subscriptions))
	for _, sub := range subscriptions {
		consumers.Go(func() { ended <- s.consume(sub, h, done) })
	}
	// The consumers must have returned before anyone hears of the loss: a message after it would be taken for one of the
	// next connection.
	defer consumers.Wait()
	defer close(done)
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case err := <-closed:
			return true, fmt.Errorf("connection to %s: %w", b.Address, orClosed(err))
		case err := <-ended:
			// When the connection went, its channels went with it; its reason says more than theirs.
			select {
			case reason := <-closed:
				err = orClosed(reason)
			default:
			}
			return true, fmt.Errorf("connection to %s: %w", b.Address, err)
		case state, ok := <-blocked:
			if !ok {
				blocked = nil
				continue
			}
			s.log.Warn().Stringer("broker", b).Bool("blocked", state.Active).Str("reason", state.Reason).
				Msg("broker limits publishers: events may be late")
		}
	}
}

// subscribe makes a channel, a queue that dies with it, its binding and its consumer.
func (s *Source) subscribe(conn *amqp091.Connection, topic string) (subscription, error) {
	ch, err := conn.Channel()
	if err != nil {
		return subscription{}, fmt.Errorf("open a channel: %w", err)
	}
	sub := subscription{
		topic: topic,
		// Made before consuming, and buffered: the library must never wait for us.
		closed:    ch.NotifyClose(make(chan *amqp091.Error, 1)),
		cancelled: ch.NotifyCancel(make(chan string, 1)),
	}
	if err := ch.Qos(s.o.Prefetch, 0, false); err != nil {
		return subscription{}, fmt.Errorf("set the prefetch: %w", err)
	}
	queue, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return subscription{}, fmt.Errorf("declare a queue: %w", err)
	}
	if err := ch.QueueBind(queue.Name, topic, exchange, false, nil); err != nil {
		return subscription{}, fmt.Errorf("bind queue %s to %s: %w", queue.Name, exchange, err)
	}
	// A repeated tag closes the whole connection at Andes; the topic makes it unique within the connection.
	sub.deliveries, err = ch.Consume(queue.Name, "gatehouse-"+s.o.Name+"-"+topic, false, false, false, false, nil)
	if err != nil {
		return subscription{}, fmt.Errorf("consume from queue %s: %w", queue.Name, err)
	}
	return sub, nil
}

// consume hands the messages of one topic over, in their order, each settled when the handler has taken it. It returns
// why it ended.
func (s *Source) consume(sub subscription, h eventsource.Handler, done <-chan struct{}) error {
	count := s.metrics.messages(sub.topic)
	for {
		select {
		case <-done: // checked first: select picks at random
			return nil
		default:
		}
		select {
		case <-done:
			return nil
		case err := <-sub.closed:
			return fmt.Errorf("channel of topic %s: %w", sub.topic, orClosed(err))
		case <-sub.cancelled:
			return fmt.Errorf("the broker cancelled the consumer of topic %s", sub.topic)
		case d, ok := <-sub.deliveries:
			if !ok {
				return fmt.Errorf("channel of topic %s: %w", sub.topic, orClosed(<-sub.closed))
			}
			count()
			s.hand(sub.topic, &d, h)
			if err := d.Ack(false); err != nil {
				return fmt.Errorf("acknowledge a message of topic %s: %w", sub.topic, err)
			}
		}
	}
}

// hand gives one message to the handler. A panic over one message must not end the delivery of all others.
func (s *Source) hand(topic string, d *amqp091.Delivery, h eventsource.Handler) {
	defer func() {
		if cause := recover(); cause != nil {
			s.metrics.panicked()
			s.log.Error().Str("topic", topic).Str("message_id", d.MessageId).Int("bytes", len(d.Body)).
				Interface("panic", cause).Bytes("stack", debug.Stack()).Msg("handling a message failed; it is passed over")
		}
	}()
	h.OnMessage(message(topic, d))
}

// orClosed is err, or what it means that a notice channel gave nothing: the library closed it without a reason.
func orClosed(err *amqp091.Error) error {
	if err == nil {
		return errors.New("closed")
	}
	return err
}

func verifyChain(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the broker sent no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
	return err
}
