package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Username and Password are the user of every node, with all permissions on the virtual hosts VHosts.
const (
	Username = "admin"
	Password = "admin-secret"
)

// VHosts are the virtual hosts of every node: the one Go clients open at the API Manager, the one Java clients open, and
// the default.
var VHosts = []string{"carbon", "/carbon", "/"}

const (
	// startTimeout is generous: a node takes 3 to 5 seconds alone, and machines are shared.
	startTimeout = 90 * time.Second
	missing      = "rabbitmq-server is missing on this machine; install it with: apt-get install -y rabbitmq-server"
)

var nodes atomic.Int64

// Rabbit is a RabbitMQ node of the test's own: own name, ports, cookie and data, so that it runs beside any other. Its
// methods must not be called concurrently.
type Rabbit struct {
	folder   string
	bin      string // folder of rabbitmq-server and rabbitmqctl
	node     string
	port     int
	env      []string
	epmd     *process
	server   *process
	starting time.Duration
}

// StartRabbitMQ starts a node and waits until it takes connections. The node is killed when the test ends.
func StartRabbitMQ(t testing.TB) *Rabbit {
	t.Helper()
	r, err := launch(t.TempDir())
	if err != nil {
		t.Fatalf("start RabbitMQ: %v", err)
	}
	t.Cleanup(r.discard)
	return r
}

// launch starts a node. Another program may take a port between our choosing it and the node's listening some seconds
// later, so a node that does not start is tried again elsewhere.
func launch(base string) (*Rabbit, error) {
	var errs error
	for attempt := range 3 {
		folder := filepath.Join(base, strconv.Itoa(attempt))
		if err := os.Mkdir(folder, 0o700); err != nil {
			return nil, err
		}
		r, err := newRabbit(folder)
		if err != nil {
			return nil, err
		}
		if err = r.start(); err == nil {
			return r, nil
		}
		r.discard()
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

var shared struct {
	sync.Mutex
	running bool // inside Run
	folder  string
	node    *Rabbit
	err     error
}

// Run runs the tests of a package that uses Shared, and ends the shared node after them. TestMain calls it:
//
//	func TestMain(m *testing.M) { os.Exit(harness.Run(m)) }
func Run(m *testing.M) int {
	shared.Lock()
	shared.running = true
	shared.Unlock()
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.node != nil {
		shared.node.discard()
	}
	if shared.folder != "" {
		_ = os.RemoveAll(shared.folder)
	}
	return code
}

// Shared is one node for all tests of a test binary, started at the first call. Tests must not stop it; they delete what
// they declare, or declare what dies with their connection. The binary's TestMain must call Run.
func Shared(t testing.TB) *Rabbit {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if !shared.running {
		t.Fatal("harness.Shared needs func TestMain(m *testing.M) { os.Exit(harness.Run(m)) }")
	}
	if shared.node == nil && shared.err == nil {
		folder, err := os.MkdirTemp("", "gatehouse-rabbitmq-")
		if err != nil {
			t.Fatal(err)
		}
		shared.folder = folder
		shared.node, shared.err = launch(folder)
	}
	if shared.err != nil {
		t.Fatalf("start RabbitMQ: %v", shared.err)
	}
	return shared.node
}

func newRabbit(folder string) (*Rabbit, error) {
	bin, err := findRabbitMQ()
	if err != nil {
		return nil, err
	}
	r := &Rabbit{folder: folder, bin: bin}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	r.port = ports[0]
	r.node = fmt.Sprintf("gatehouse-%d-%d@localhost", os.Getpid(), nodes.Add(1))
	if err := r.configure(); err != nil {
		return nil, err
	}
	// The environment is made anew: what configures another broker of this machine must not reach this one.
	r.env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "HOME=" + folder,
		"RABBITMQ_NODENAME=" + r.node,
		"RABBITMQ_BASE=" + folder,
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(folder, "data"),
		"RABBITMQ_LOG_BASE=" + filepath.Join(folder, "log"),
		"RABBITMQ_PID_FILE=" + filepath.Join(folder, "pid"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + filepath.Join(folder, "generated"),
		"RABBITMQ_CONF_ENV_FILE=" + filepath.Join(folder, "none.conf"),
		"RABBITMQ_CONFIG_FILE=" + filepath.Join(folder, "rabbitmq"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + filepath.Join(folder, "none"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(folder, "plugins"),
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT=" + strconv.Itoa(r.port),
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(ports[1]),
		"ERL_CRASH_DUMP=" + filepath.Join(folder, "crash"),
		"ERL_EPMD_PORT=" + strconv.Itoa(ports[2]), "ERL_EPMD_ADDRESS=127.0.0.1",
		// Schedulers that spin while idle would starve the tests on a small machine.
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt none +sbwtdcpu none +sbwtdio none",
		// The script then becomes the Erlang machine instead of waiting for it: one process to kill.
		"detached=1",
	}
	epmd, err := exec.LookPath("epmd")
	if err != nil {
		return nil, errors.New(missing)
	}
	// Erlang would start this daemon by itself, and leave it behind.
	r.epmd, err = startProcess(exec.Command(epmd, "-port", strconv.Itoa(ports[2]), "-address", "127.0.0.1"), r.env, os.DevNull)
	return r, err
}

func findRabbitMQ() (string, error) {
	// Debian's /usr/sbin/rabbitmq-server changes to another user, who can read no test's folder.
	for _, folder := range []string{"/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"} {
		if _, err := os.Stat(filepath.Join(folder, "rabbitmq-server")); err == nil {
			return folder, nil
		}
	}
	path, err := exec.LookPath("rabbitmq-server")
	if err != nil {
		return "", errors.New(missing)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

// configure writes the files that the node reads.
func (r *Rabbit) configure() error {
	type object map[string]any
	vhosts, permissions := []object{}, []object{}
	for _, v := range VHosts {
		vhosts = append(vhosts, object{"name": v})
		permissions = append(permissions, object{"user": Username, "vhost": v, "configure": ".*", "write": ".*", "read": ".*"})
	}
	definitions, err := json.Marshal(object{
		"users":  []object{{"name": Username, "password": Password, "tags": "administrator"}},
		"vhosts": vhosts, "permissions": permissions,
	})
	if err != nil {
		return err
	}
	settings := fmt.Sprintf("listeners.tcp.local = 127.0.0.1:%d\nload_definitions = %s\nlog.console = true\nlog.console.level = info\n"+
		"log.file = false\ndisk_free_limit.absolute = 1MB\nvm_memory_high_watermark.absolute = 512MB\n",
		r.port, filepath.Join(r.folder, "definitions.json"))
	return errors.Join(
		os.WriteFile(filepath.Join(r.folder, "definitions.json"), definitions, 0o600),
		os.WriteFile(filepath.Join(r.folder, "rabbitmq.conf"), []byte(settings), 0o600),
		os.WriteFile(filepath.Join(r.folder, "plugins"), []byte("[].\n"), 0o600),
	)
}

// start starts the server and waits until a client can log in.
func (r *Rabbit) start() error {
	began := time.Now()
	var err error
	r.server, err = startProcess(exec.Command(filepath.Join(r.bin, "rabbitmq-server")), r.env, filepath.Join(r.folder, "output"))
	if err != nil {
		return err
	}
	for {
		if err = r.ready(); err == nil {
			r.starting = time.Since(began)
			return nil
		}
		select {
		case <-r.server.done:
			return fmt.Errorf("the node ended while starting: %w; its last words:\n%s", r.server.err, r.tail())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(began) > startTimeout {
			return fmt.Errorf("the node is not ready after %s: %w; its last words:\n%s", startTimeout, err, r.tail())
		}
	}
}

func (r *Rabbit) ready() error {
	// The listener opens last, but right before the virtual hosts are usable on a loaded machine.
	probe, err := net.DialTimeout("tcp", r.Address(), time.Second)
	if err != nil {
		return err
	}
	_ = probe.Close()
	for _, vhost := range VHosts {
		c, err := amqp091.Dial(r.URL(vhost))
		if err != nil {
			return err
		}
		_ = c.Close()
	}
	return nil
}

func (r *Rabbit) tail() string {
	b, _ := os.ReadFile(filepath.Join(r.folder, "output"))
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// Address is host:port of the AMQP listener, the same after a restart.
func (r *Rabbit) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// URL is the AMQP URL of one virtual host, with credentials.
func (r *Rabbit) URL(vhost string) string {
	return fmt.Sprintf("amqp://%s:%s@%s/%s", Username, url.PathEscape(Password), r.Address(), url.PathEscape(vhost))
}

// Kill ends the node as a power cut does: kill -9.
func (r *Rabbit) Kill() { r.server.kill() }

// Stop ends the node in good order; it closes its connections and says why.
func (r *Rabbit) Stop(t testing.TB) {
	t.Helper()
	r.server.signal(syscall.SIGTERM)
	select {
	case <-r.server.done:
	case <-time.After(20 * time.Second):
		r.server.kill()
		t.Error("RabbitMQ did not stop within 20 s of SIGTERM and was killed")
	}
}

// Restart starts the node again, on the same port and with its data, after ending it if it runs.
func (r *Rabbit) Restart(t testing.TB) {
	t.Helper()
	r.server.kill()
	if err := r.start(); err != nil {
		t.Fatalf("restart RabbitMQ: %v", err)
	}
}

// StartTime is how long the last start took.
func (r *Rabbit) StartTime() time.Duration { return r.starting }

// CloseConnections makes the broker close every connection, with a connection.close that says reason.
func (r *Rabbit) CloseConnections(t testing.TB, reason string) {
	t.Helper()
	r.Control(t, "close_all_connections", "--global", reason)
}

// CloseChannels makes the broker close every channel with a channel error, 406, and leaves the connections open: it acts
// as if each client had acknowledged a message that it never got.
func (r *Rabbit) CloseChannels(t testing.TB) {
	t.Helper()
	r.Control(t, "eval", `[ catch rabbit_channel:do(C, {'basic.ack', 999999999, false}) || C <- rabbit_channel:list() ].`)
}

// DeleteQueues deletes every queue; the broker cancels their consumers.
func (r *Rabbit) DeleteQueues(t testing.TB) {
	t.Helper()
	r.Control(t, "eval", `[ catch rabbit_amqqueue:delete(Q, false, false, <<"test">>) || Q <- rabbit_amqqueue:list() ].`)
}

// Queues is how many queues the node has, over all virtual hosts.
func (r *Rabbit) Queues(t testing.TB) int {
	t.Helper()
	return r.count(t, "length(rabbit_amqqueue:list()).")
}

// Connections is how many AMQP connections the node has.
func (r *Rabbit) Connections(t testing.TB) int {
	t.Helper()
	return r.count(t, "length(rabbit_networking:connections()).")
}

// Channels is how many channels the node has.
func (r *Rabbit) Channels(t testing.TB) int {
	t.Helper()
	return r.count(t, "length(rabbit_channel:list()).")
}

func (r *Rabbit) count(t testing.TB, expression string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(r.Control(t, "eval", expression)))
	if err != nil {
		t.Fatalf("rabbitmqctl eval %s: %v", expression, err)
	}
	return n
}

// Control runs rabbitmqctl with the arguments against this node and returns what it printed.
func (r *Rabbit) Control(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(r.bin, "rabbitmqctl"), append([]string{"--quiet", "--node", r.node}, args...)...)
	c.Env = r.env
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (r *Rabbit) discard() {
	if r.server != nil {
		r.server.kill()
	}
	if r.epmd != nil {
		r.epmd.kill()
	}
}

// process is a child in a process group of its own, waited for by one goroutine.
type process struct {
	pid  int
	done chan struct{}
	err  error // after done
}

// startProcess starts c with its output in a file.
func startProcess(c *exec.Cmd, env []string, output string) (*process, error) {
	file, err := os.OpenFile(output, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // the child has its own
	c.Env, c.Stdout, c.Stderr = env, file, file
	c.SysProcAttr = ownGroup()
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel ends the child when the thread that started it ends, so that a test binary that is killed leaves no
		// broker behind. This thread therefore waits for it.
		runtime.LockOSThread()
		defer close(p.done)
		err := c.Start()
		if err == nil {
			p.pid = c.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = c.Wait()
		}
	}()
	return p, <-started
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.done: // the number may belong to another by now
	default:
		_ = syscall.Kill(-p.pid, s)
	}
}

// kill ends the whole group and waits for it.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// The system gives outgoing connections ports from 32768 on (Linux) or 49152 on (others). A node keeps its ports while it is
// down, so they must lie where no connection takes them meanwhile.
const (
	firstPort = 20_000
	lastPort  = 32_000
)

// freePorts are different ports that nobody listens on now.
func freePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	var last error
	for range 100 * n {
		if len(ports) == n {
			return ports, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		defer func() { _ = l.Close() }() // until all are found, so that none is found twice
		ports = append(ports, port)
	}
	if len(ports) == n {
		return ports, nil
	}
	return nil, fmt.Errorf("find %d free ports from %d to %d: %w", n, firstPort, lastPort, last)
}
