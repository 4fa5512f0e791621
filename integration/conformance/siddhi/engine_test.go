//go:build conformance

package siddhi

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/throttle/siddhi/value"
)

// realEngine is the real Siddhi engine in a process of its own; see engine/src.
type realEngine struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// startRealEngine builds and starts it. What the machine lacks fails the test, by name.
func startRealEngine(t *testing.T) *realEngine {
	t.Helper()
	for program, debian := range map[string]string{"java": "openjdk-17-jre-headless", "javac": "openjdk-17-jdk-headless", "mvn": "maven"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("nothing was compared: %s is missing (Debian: apt-get install %s)", program, debian)
		}
	}
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS("engine")); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("mvn", "-q", "-B", "compile", "dependency:build-classpath", "-Dmdep.outputFile=target/classpath")
	build.Dir = folder
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("nothing was compared: mvn cannot build the engine (is Maven Central reachable?): %v\n%s", err, out)
	}
	classpath, err := os.ReadFile(filepath.Join(folder, "target/classpath"))
	if err != nil {
		t.Fatal(err)
	}
	java := exec.Command("java", "-Xmx512m", "-cp", filepath.Join(folder, "target/classes")+string(os.PathListSeparator)+string(classpath), "gatehouse.Main")
	java.Stderr = io.Discard
	in, err := java.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := java.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := java.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		late := time.AfterFunc(20*time.Second, func() { _ = java.Process.Kill() })
		defer late.Stop()
		if err := java.Wait(); err != nil {
			t.Errorf("the real engine: %v", err)
		}
	})
	return &realEngine{in: in, out: bufio.NewReader(out)}
}

func (e *realEngine) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(e.in, line+"\n"); err != nil {
		t.Fatalf("the real engine: %v", err)
	}
}

func (e *realEngine) hear(t *testing.T) string {
	t.Helper()
	line, err := e.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the real engine: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// plan deploys a text; it returns why the engine refuses it, "" when it does not.
func (e *realEngine) plan(t *testing.T, text string) (refused string) {
	t.Helper()
	e.say(t, "plan "+base64.StdEncoding.EncodeToString([]byte(text)))
	answer := e.hear(t)
	if why, ok := strings.CutPrefix(answer, "refused "); ok {
		return why
	}
	return ""
}

// play sends a history and returns the rows, those of each event by themselves.
func (e *realEngine) play(t *testing.T, history []historyEvent) (rows []string) {
	t.Helper()
	for i, event := range history {
		words := []string{"event", fmt.Sprint(event.at)}
		for _, v := range event.row {
			words = append(words, word(v))
		}
		e.say(t, strings.Join(words, " "))
		for {
			answer := e.hear(t)
			if answer == "done" {
				break
			}
			if row, ok := strings.CutPrefix(answer, "row "); ok {
				rows = append(rows, fmt.Sprintf("event[%d] %s", i, readable(t, row)))
			}
		}
	}
	e.say(t, "end")
	if answer := e.hear(t); answer != "done" {
		t.Fatalf("the real engine: %s", answer)
	}
	return rows
}

var letters = map[value.Kind]string{value.String: "s", value.Int: "i", value.Long: "l", value.Float: "f", value.Double: "d", value.Bool: "b"}

func word(v value.Value) string {
	if v.IsNull() {
		return "n"
	}
	return letters[v.Kind()] + base64.StdEncoding.EncodeToString([]byte(v.String()))
}

func readable(t *testing.T, row string) string {
	t.Helper()
	words := strings.Split(row, " ")
	for i, w := range words {
		text, err := base64.StdEncoding.DecodeString(w[1:])
		if err != nil {
			t.Fatal(err)
		}
		words[i] = w[:1] + ":" + decimal(w[:1], string(text))
	}
	return strings.Join(words, " ")
}

// decimal writes floats and doubles in one way: Java before 19 does not always write the shortest text that reads back.
func decimal(kind, text string) string {
	bits := map[string]int{"f": 32, "d": 64}[kind]
	if bits == 0 {
		return text
	}
	number, err := strconv.ParseFloat(text, bits)
	if err != nil {
		return text
	}
	return strconv.FormatFloat(number, 'g', -1, bits)
}
