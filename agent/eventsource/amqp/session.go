package amqp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/supervisor"
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
func (s *Source) session(ctx context.Context, b brokerurl.Broker, link *supervisor.Link) error {
	conn, err := s.dial(ctx, b)
	if err != nil {
		return refusal(fmt.Errorf("connect to %s: %w", b.Address, err))
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
			return refusal(fmt.Errorf("subscribe to topic %s at %s: %w", topic, b.Address, err))
		}
		subscriptions = append(subscriptions, sub)
	}
	// From here on nothing that is published can be missed. The first message follows the state.
	link.Connected()

	var consumers sync.WaitGroup
	done := make(chan struct{})
	ended := make(chan error, len(subscriptions))
	for _, sub := range subscriptions {
		consumers.Go(func() { ended <- consume(sub, link, done) })
	}
	// The consumers must have returned before anyone hears of the loss: a message after it would be taken for one of the
	// next connection.
	defer consumers.Wait()
	defer close(done)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-closed:
			return fmt.Errorf("connection to %s: %w", b.Address, orClosed(err))
		case err := <-ended:
			// When the connection went, its channels went with it; its reason says more than theirs.
			select {
			case reason := <-closed:
				err = orClosed(reason)
			default:
			}
			return fmt.Errorf("connection to %s: %w", b.Address, err)
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
func consume(sub subscription, link *supervisor.Link, done <-chan struct{}) error {
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
		case _, ok := <-sub.cancelled:
			if !ok { // closed with the channel
				return fmt.Errorf("channel of topic %s: %w", sub.topic, orClosed(<-sub.closed))
			}
			return fmt.Errorf("the broker cancelled the consumer of topic %s", sub.topic)
		case d, ok := <-sub.deliveries:
			if !ok {
				return fmt.Errorf("channel of topic %s: %w", sub.topic, orClosed(<-sub.closed))
			}
			link.Deliver(message(sub.topic, &d))
			if err := d.Ack(false); err != nil {
				return fmt.Errorf("acknowledge a message of topic %s: %w", sub.topic, err)
			}
		}
	}
}

// orClosed is err, or what it means that a notice channel gave nothing: the library closed it without a reason.
func orClosed(err *amqp091.Error) error {
	if err == nil {
		return errors.New("closed")
	}
	return err
}
