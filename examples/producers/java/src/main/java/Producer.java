import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.HashSet;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Sends one request to chainwriter and waits for its outcome.
 *
 * <pre>java -cp 'target/classes:target/dependency/*' Producer \
 *     amqp://guest:guest@127.0.0.1:5672/%2f acme.writes order-1 '{"amount":5}'</pre>
 *
 * Exit codes: 0 the write is final; 1 it is a dead letter; 2 it cannot be sent; 75 the outcome is not known yet: run this
 * again with the same id and the same body.
 */
public final class Producer {
    /** Outlives each connection, so no outcome is lost with one. One for each service. */
    private static final String REPLIES = "orders.outcomes";
    private static final Duration CONFIRM_TIMEOUT = Duration.ofSeconds(5);
    private static final Duration OUTCOME_TIMEOUT = Duration.ofMinutes(10);
    private static final Duration PAUSE = Duration.ofSeconds(1);

    private static final int FINAL = 0;
    private static final int DEAD = 1;
    private static final int CANNOT_BE_SENT = 2;
    private static final int UNKNOWN = 75;

    private static final ObjectMapper JSON = new ObjectMapper();

    private final ConnectionFactory factory;
    private final String queue;
    private final String id;
    private final byte[] body;
    private final Instant deadline = Instant.now().plus(OUTCOME_TIMEOUT);
    private boolean confirmed;

    private Producer(ConnectionFactory factory, String queue, String id, byte[] body) {
        this.factory = factory;
        this.queue = queue;
        this.id = id;
        this.body = body;
    }

    public static void main(String[] args) throws Exception {
        if (args.length != 4) {
            System.err.println("usage: Producer BROKER QUEUE ID BODY");
            System.exit(CANNOT_BE_SENT);
        }
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);
        factory.setRequestedHeartbeat(10);
        factory.setConnectionTimeout((int) CONFIRM_TIMEOUT.toMillis());
        factory.setChannelRpcTimeout((int) CONFIRM_TIMEOUT.toMillis());
        // The loop below connects again, and knows what to send again.
        factory.setAutomaticRecoveryEnabled(false);
        System.exit(new Producer(factory, args[1], args[2], args[3].getBytes(StandardCharsets.UTF_8)).run());
    }

    private int run() throws InterruptedException {
        while (Instant.now().isBefore(deadline)) {
            Connection connection = null;
            try {
                connection = factory.newConnection("orders");
                Channel channel = connection.createChannel();
                channel.queueDeclare(REPLIES, true, false, false, Map.of("x-queue-type", "quorum"));
                if (!confirmed && !publish(channel)) {
                    System.out.printf("%s: there is no queue %s%n", id, queue);
                    return CANNOT_BE_SENT;
                }
                confirmed = true;
                return waitForOutcome(connection, channel);
            } catch (IOException | TimeoutException | ExecutionException | ShutdownSignalException error) {
                // The broker may have the message or not. Sent again with the same id and body, it is written once.
                String what = confirmed ? "lost the connection" : "no confirm, sending it again";
                System.out.printf("%s: %s (%s)%n", id, what, error);
                Thread.sleep(PAUSE.toMillis());
            } finally {
                if (connection != null) {
                    // With a limit: a connection that answers nothing would not close either.
                    connection.abort((int) PAUSE.toMillis());
                }
            }
        }
        return UNKNOWN;
    }

    /** Returns true once the broker has the message on its disks, false if no queue takes it. */
    private boolean publish(Channel channel) throws IOException, InterruptedException, TimeoutException {
        AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder()
                .messageId(id) // the same for each copy of this request, another for each new one
                .type("order") // routes go by it
                .contentType("application/json")
                .deliveryMode(2) // persistent
                .replyTo(REPLIES)
                .correlationId(id)
                .build();
        AtomicBoolean returned = new AtomicBoolean();
        channel.addReturnListener(message -> returned.set(true)); // comes before the confirm
        channel.confirmSelect();
        boolean mandatory = true;
        channel.basicPublish("", queue, mandatory, properties, body);
        if (!channel.waitForConfirms(CONFIRM_TIMEOUT.toMillis())) {
            throw new IOException("the broker refused it");
        }
        return !returned.get();
    }

    private int waitForOutcome(Connection connection, Channel channel)
            throws IOException, ExecutionException, InterruptedException {
        Set<String> seen = new HashSet<>(); // an event comes at least once; a service keeps the ids with its orders
        CompletableFuture<Integer> outcome = new CompletableFuture<>();
        connection.addShutdownListener(outcome::completeExceptionally);
        channel.addShutdownListener(outcome::completeExceptionally);
        channel.basicConsume(REPLIES, false, (tag, delivery) -> {
            JsonNode event = JSON.readTree(delivery.getBody());
            OptionalInt code = seen.add(event.path("id").asText()) ? handle(event) : OptionalInt.empty();
            channel.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
            if (code.isPresent() && event.path("subject").asText().equals(id)) {
                outcome.complete(code.getAsInt());
            }
        }, tag -> outcome.completeExceptionally(new IOException(REPLIES + " was deleted")));
        try {
            return outcome.get(Duration.between(Instant.now(), deadline).toMillis(), TimeUnit.MILLISECONDS);
        } catch (TimeoutException late) {
            return UNKNOWN;
        }
    }

    /** Prints the event, where a service stores it. Returns the exit code if it is the last one. */
    private static OptionalInt handle(JsonNode event) {
        String subject = event.path("subject").asText();
        String kind = event.path("type").asText().split("\\.")[3]; // io.chainwriter.request.final.v1
        JsonNode data = event.path("data");
        switch (kind) {
            case "final" -> {
                JsonNode transaction = data.path("transaction");
                System.out.printf("%s: final in block %d, %s%n", subject, transaction.path("block_number").asLong(),
                        transaction.path("tx_hash").asText());
                return OptionalInt.of(FINAL);
            }
            case "dead" -> {
                JsonNode error = data.path("error");
                System.out.printf("%s: dead, %s.%s: %s%n", subject, error.path("class").asText(),
                        error.path("reason").asText(), error.path("detail").asText());
                return OptionalInt.of(DEAD);
            }
            default -> {
                System.out.printf("%s: %s%n", subject, kind); // "retry": chainwriter tries again by itself
                return OptionalInt.empty();
            }
        }
    }
}
