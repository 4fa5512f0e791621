package gatehouse;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Base64;

import org.wso2.siddhi.core.ExecutionPlanRuntime;
import org.wso2.siddhi.core.SiddhiManager;
import org.wso2.siddhi.core.event.Event;
import org.wso2.siddhi.core.stream.input.InputHandler;
import org.wso2.siddhi.core.stream.output.StreamCallback;

/**
 * Runs plans on the engine's own playback clock. Lines in: "plan BASE64", "event AT VALUE…", "end". Lines out: "ok" or
 * "refused TEXT" for a plan, "row VALUE…" for each row of the stream Out, then "done" for each event and for end. A value is n
 * for null, or a letter for its type and its text in base64.
 */
public class Main {
    private static PrintStream out;

    public static void main(String[] args) throws Exception {
        out = new PrintStream(System.out, false, "UTF-8");
        System.setOut(System.err);
        org.apache.log4j.BasicConfigurator.configure(new org.apache.log4j.ConsoleAppender(new org.apache.log4j.PatternLayout("%m%n"), "System.err"));
        org.apache.log4j.Logger.getRootLogger().setLevel(org.apache.log4j.Level.OFF);
        SiddhiManager manager = new SiddhiManager();
        manager.setExtension("throttler:timeBatch", TimeBatch.class);
        manager.setExtension("throttler:emitOnStateChange", EmitOnStateChange.class);
        manager.setExtension("str:concat", Concat.class);
        ExecutionPlanRuntime runtime = null;
        InputHandler in = null;
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = lines.readLine()) != null; ) {
            String[] words = line.split(" ");
            switch (words[0]) {
                case "plan":
                    try {
                        runtime = manager.createExecutionPlanRuntime(text(words[1]));
                        runtime.addCallback("Out", new StreamCallback() {
                            @Override
                            public void receive(Event[] events) {
                                for (Event e : events) {
                                    StringBuilder b = new StringBuilder("row");
                                    for (Object o : e.getData()) {
                                        b.append(' ').append(shown(o));
                                    }
                                    out.println(b);
                                }
                            }
                        });
                        in = runtime.getInputHandler("Input");
                        runtime.start();
                        out.println("ok");
                    } catch (Throwable t) {
                        out.println("refused " + String.valueOf(t).replace('\n', ' '));
                    }
                    break;
                case "event":
                    Object[] data = new Object[words.length - 2];
                    for (int i = 0; i < data.length; i++) {
                        data[i] = value(words[i + 2]);
                    }
                    try {
                        in.send(Long.parseLong(words[1]), data);
                    } catch (RuntimeException e) {
                        out.println("lost " + String.valueOf(e).replace('\n', ' '));
                    }
                    out.println("done");
                    break;
                case "end":
                    runtime.shutdown();
                    out.println("done");
                    break;
                default:
                    throw new IllegalArgumentException(line);
            }
            out.flush();
        }
        System.exit(0); // the engine leaves threads behind that would keep the process
    }

    private static String text(String base64) {
        return new String(Base64.getDecoder().decode(base64), StandardCharsets.UTF_8);
    }

    private static Object value(String word) {
        if (word.equals("n")) {
            return null;
        }
        String t = text(word.substring(1));
        switch (word.charAt(0)) {
            case 's':
                return t;
            case 'i':
                return Integer.valueOf(t);
            case 'l':
                return Long.valueOf(t);
            case 'f':
                return Float.valueOf(t);
            case 'd':
                return Double.valueOf(t);
            case 'b':
                return Boolean.valueOf(t);
        }
        throw new IllegalArgumentException(word);
    }

    private static String shown(Object o) {
        if (o == null) {
            return "n";
        }
        char kind = 's';
        if (o instanceof Integer) {
            kind = 'i';
        } else if (o instanceof Long) {
            kind = 'l';
        } else if (o instanceof Float) {
            kind = 'f';
        } else if (o instanceof Double) {
            kind = 'd';
        } else if (o instanceof Boolean) {
            kind = 'b';
        }
        return kind + Base64.getEncoder().encodeToString(o.toString().getBytes(StandardCharsets.UTF_8));
    }
}
