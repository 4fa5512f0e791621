//go:build conformance

package conformance

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/amqp"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/sourcetest"
)

// qpid is a running Qpid broker with its JMS publisher; see qpid/src.
type qpid struct {
	t       *testing.T
	address string
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

// startQpid builds the publisher with Maven and starts it. What the machine lacks fails the test, by name.
func startQpid(t *testing.T) *qpid {
	t.Helper()
	need(t, "nothing of Qpid was run", map[string]string{"java": "openjdk-17-jre-headless", "javac": "openjdk-17-jdk-headless", "mvn": "maven"})
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS("qpid")); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("mvn", "-q", "-B", "compile", "dependency:build-classpath", "-Dmdep.outputFile=target/classpath")
	build.Dir = folder
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("nothing of Qpid was run: mvn cannot build the publisher (is Maven Central reachable?): %v\n%s", err, out)
	}
	classpath, err := os.ReadFile(filepath.Join(folder, "target/classpath"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q := &qpid{t: t, address: l.Addr().String()}
	l.Close()
	_, port, _ := net.SplitHostPort(q.address)
	q.command = exec.Command("java", "-cp", filepath.Join(folder, "target/classes")+":"+string(classpath),
		"-DQPID_WORK="+folder, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "gatehouse.Qpid", port, "admin", "right", folder)
	log, err := os.Create(filepath.Join(folder, "log"))
	if err != nil {
		t.Fatal(err)
	}
	q.command.Stderr = log
	if q.in, err = q.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := q.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	q.out = bufio.NewReader(out)
	if err := q.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		q.stop()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("what Qpid said:\n%s", text)
		}
	})
	if line := q.read(); line != "ready" {
		t.Fatalf("Qpid said %q, want ready", line)
	}
	return q
}

// stop ends the broker in good order: the end of its input.
func (q *qpid) stop() {
	q.in.Close()
	timer := time.AfterFunc(30*time.Second, func() { _ = q.command.Process.Kill() })
	defer timer.Stop()
	_ = q.command.Wait()
}

func (q *qpid) read() string {
	q.t.Helper()
	timer := time.AfterFunc(60*time.Second, func() { _ = q.command.Process.Kill() })
	defer timer.Stop()
	line, err := q.out.ReadString('\n')
	if err != nil {
		q.t.Fatalf("Qpid is gone: %v", err)
	}
	return strings.TrimSpace(line)
}

// publish sends one message and returns its JMS time stamp, ms.
func (q *qpid) publish(kind, topic, body string) int64 {
	q.t.Helper()
	if _, err := fmt.Fprintf(q.in, "%s %s %s\n", kind, topic, body); err != nil {
		q.t.Fatal(err)
	}
	line := q.read()
	millis, err := strconv.ParseInt(strings.TrimPrefix(line, "sent "), 10, 64)
	if err != nil {
		q.t.Fatalf("publishing to %s: %s", topic, line)
	}
	return millis
}

func encode(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// qpidSample is a sample of the contract.
type qpidSample struct {
	Name string `json:"name"`
	AMQP struct {
		RoutingKey  string `json:"routingKey"`
		ContentType string `json:"contentType"`
	} `json:"amqp"`
	Body       json.RawMessage `json:"body"`
	BodyText   string          `json:"bodyText"`
	BodyBase64 []byte          `json:"bodyBase64"`
	MapFields  []struct {
		Name  string `json:"name"`
		Type  string `json:"type"`
		Value any    `json:"value"`
	} `json:"mapFields"`
}

// fields are the arguments that make the publisher write the map.
func (s qpidSample) fields() string {
	var parts []string
	for _, f := range s.MapFields {
		kind, value := f.Type, ""
		switch v := f.Value.(type) {
		case nil:
			kind = "null"
		case string:
			value = v
		case float64:
			value = strconv.FormatFloat(v, 'f', -1, 64)
		case bool:
			value = strconv.FormatBool(v)
		}
		parts = append(parts, encode(f.Name)+":"+kind+":"+encode(value))
	}
	return strings.Join(parts, ",")
}

// TestQpid has Qpid's own JMS client publish every sample through Qpid's broker: text, and both forms of map. Our source
// must give the events that the samples' bytes give. Then what the broker says when it refuses us, and goes.
func TestQpid(t *testing.T) {
	q := startQpid(t)
	set, err := brokerurl.Parse("amqp://admin:right@clientid/carbon?brokerlist='tcp://"+q.address+"'", brokerurl.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	topics := []string{
		event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation, event.TopicThrottleData,
		event.TopicCacheInvalidation, event.TopicAsyncWebhooks, event.TopicOpaqueAPIKey,
	}
	source := func(b brokerurl.Broker) *amqp.Source {
		s, err := amqp.New(amqp.Options{Name: "event_hub", Brokers: []brokerurl.Broker{b}, Topics: topics, Logger: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(set.Brokers[0]), r)
	r.AwaitState(t, eventsource.Connected, 1, 30*time.Second)

	t.Run("samples", func(t *testing.T) {
		files, err := filepath.Glob("../../agent/event/testdata/events/*.json")
		if err != nil || len(files) != 116 {
			t.Fatalf("%d samples, %v, want 116", len(files), err)
		}
		maps := 0
		for _, file := range files {
			var s qpidSample
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(data, &s); err != nil {
				t.Fatal(err)
			}
			body := []byte(s.BodyText)
			if s.Body != nil {
				body = s.Body
			} else if s.BodyBase64 != nil {
				body = s.BodyBase64
			}
			kinds := []string{"text"}
			if s.MapFields != nil {
				kinds = []string{"map", "legacy"}
				maps++
			}
			for _, kind := range kinds {
				argument := encode(string(body))
				if kind != "text" {
					argument = s.fields()
				}
				before := len(r.Messages())
				sent := q.publish(kind, s.AMQP.RoutingKey, argument)
				r.Await(t, s.Name, 10*time.Second, func() bool { return len(r.Messages()) > before })
				m := r.Messages()[before]
				wantType := map[string]string{"text": "text/plain", "map": "amqp/map", "legacy": "jms/map-message"}[kind]
				if m.ContentType != wantType || m.Timestamp != sent || !strings.HasPrefix(m.MessageID, "ID:") {
					t.Errorf("%s as %s: content type %q, time stamp %d (sent at %d), id %q", s.Name, kind, m.ContentType, m.Timestamp, sent, m.MessageID)
				}
				// The bytes differ: this client writes short texts as str16, Andes writes every text as str32.
				want, wantErr := event.Decode(event.Message{Topic: m.Topic, ContentType: s.AMQP.ContentType, Timestamp: sent, Body: body})
				got, err := event.Decode(m)
				if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (wantErr == nil) {
					t.Errorf("%s as %s: %v, want %v (-sample +delivered):\n%s", s.Name, kind, err, wantErr, diff)
				}
			}
		}
		if maps != 9 {
			t.Errorf("%d map samples, want 9", maps)
		}
	})
	t.Run("long text", func(t *testing.T) {
		before := len(r.Messages())
		long := strings.Repeat("0123456789", 50000)
		q.publish("text", "notification", encode(long))
		r.Await(t, "the text", 10*time.Second, func() bool { return len(r.Messages()) > before })
		if got := string(r.Messages()[before].Body); got != long {
			t.Errorf("%d bytes arrived, want %d", len(got), len(long))
		}
	})
	for name, change := range map[string]func(*brokerurl.Broker){
		"wrong password":       func(b *brokerurl.Broker) { b.Password = "wrong" },
		"unknown virtual host": func(b *brokerurl.Broker) { b.VHost = "nowhere" },
	} {
		t.Run(name, func(t *testing.T) {
			b := set.Brokers[0]
			change(&b)
			refused := sourcetest.NewRecorder()
			sourcetest.Run(t, source(b), refused)
			refused.Await(t, "an answer", 30*time.Second, func() bool { return len(refused.States()) > 1 })
			if s := refused.States()[1]; s.Kind != eventsource.Refused {
				t.Errorf("the broker's answer is taken for %s: %v", s.Kind, s.Err)
			} else {
				t.Logf("refused: %v", s.Err)
			}
		})
	}
	t.Run("broker stops", func(t *testing.T) {
		q.stop()
		r.AwaitState(t, eventsource.Disconnected, 1, 15*time.Second)
		states := r.States()
		i := slices.IndexFunc(states, func(s eventsource.State) bool { return s.Kind == eventsource.Disconnected })
		if err := states[i].Err; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the loss is told as %v", err)
		} else {
			t.Logf("lost: %v", err)
		}
	})
}
