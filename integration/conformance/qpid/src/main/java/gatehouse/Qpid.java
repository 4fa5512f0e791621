package gatehouse;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import javax.jms.Connection;
import javax.jms.MapMessage;
import javax.jms.Message;
import javax.jms.MessageProducer;
import javax.jms.Session;
import org.apache.qpid.client.AMQConnectionFactory;
import org.apache.qpid.server.SystemLauncher;

/**
 * Runs a Qpid broker with the virtual host carbon on a port, and publishes with Qpid's own JMS client what it is told on
 * standard input: a line a message,
 *
 * <pre>
 * text TOPIC BODY
 * map  TOPIC NAME:TYPE:VALUE,...      (TYPE string, int, long, boolean; null for a null)
 * legacy TOPIC NAME:TYPE:VALUE,...    (the same as jms/map-message)
 * </pre>
 *
 * with texts in base64. Each is answered by "sent" and its JMS time stamp, or by "failed" and why.
 */
public final class Qpid {
    private static Session plain;
    private static Session legacy;

    public static void main(String[] args) throws Exception {
        String port = args[0];
        String user = args[1];
        String password = args[2];
        // The broker's port for AMQP is no default: the configuration below names it.
        Path configuration = Files.createTempFile(Path.of(args[3]), "broker", ".json");
        Files.writeString(configuration, """
            {"name": "gatehouse", "modelVersion": "9.0",
             "authenticationproviders": [{"name": "plain", "type": "Plain", "secureOnlyMechanisms": [],
               "users": [{"name": "%s", "type": "managed", "password": "%s"}]}],
             "ports": [{"name": "amqp", "port": "%s", "bindingAddress": "127.0.0.1", "protocols": ["AMQP_0_9_1"],
               "authenticationProvider": "plain",
               "virtualhostaliases": [{"name": "name", "type": "nameAlias"}, {"name": "default", "type": "defaultAlias"}]}],
             "virtualhostnodes": [{"name": "carbon", "type": "Memory", "defaultVirtualHostNode": "true",
               "virtualHostInitialConfiguration": "{\\"type\\": \\"Memory\\"}"}]}
            """.formatted(user, password, port));
        URL url = configuration.toUri().toURL();
        Map<String, Object> attributes = new HashMap<>();
        attributes.put("type", "Memory");
        attributes.put("initialConfigurationLocation", url.toExternalForm());
        attributes.put("startupLoggedToSystemOut", "false");
        SystemLauncher broker = new SystemLauncher();
        broker.startup(attributes);

        System.setProperty("qpid.amqp.version", "0-91");
        String base = "amqp://" + user + ":" + password + "@clientid/carbon?brokerlist='tcp://127.0.0.1:" + port + "'";
        plain = session(base);
        legacy = session(base + "&use_legacy_map_msg_format='true'");
        System.out.println("ready");

        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            try {
                System.out.println("sent " + publish(line.split(" ", -1)));
            } catch (Exception e) {
                System.out.println("failed " + e);
            }
        }
        broker.shutdown();
        System.exit(0);
    }

    private static Session session(String url) throws Exception {
        Connection connection = new AMQConnectionFactory(url).createConnection();
        connection.start();
        return connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
    }

    private static long publish(String[] words) throws Exception {
        Session session = words[0].equals("legacy") ? legacy : plain;
        Message message;
        if (words[0].equals("text")) {
            message = session.createTextMessage(text(words[2]));
        } else {
            MapMessage map = session.createMapMessage();
            if (!words[2].isEmpty()) {
                for (String entry : words[2].split(",")) {
                    String[] parts = entry.split(":", -1);
                    put(map, text(parts[0]), parts[1], text(parts[2]));
                }
            }
            message = map;
        }
        MessageProducer producer = session.createProducer(session.createTopic(words[1]));
        producer.send(message);
        producer.close();
        return message.getJMSTimestamp();
    }

    private static void put(MapMessage map, String name, String type, String value) throws Exception {
        switch (type) {
            case "string" -> map.setString(name, value);
            case "int" -> map.setInt(name, Integer.parseInt(value));
            case "long" -> map.setLong(name, Long.parseLong(value));
            case "boolean" -> map.setBoolean(name, Boolean.parseBoolean(value));
            case "null" -> map.setString(name, null);
            default -> throw new IllegalArgumentException("type " + type);
        }
    }

    private static String text(String base64) {
        return new String(Base64.getDecoder().decode(base64), StandardCharsets.UTF_8);
    }
}
