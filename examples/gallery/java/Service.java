import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;

/** GET /factors/84 is answered with "84 = 2 2 3 7". */
public final class Service {
    private static final String PATH = "/factors/";

    public static void main(String[] arguments) throws IOException {
        InetAddress loopback = InetAddress.getByName("127.0.0.1");
        HttpServer server = HttpServer.create(new InetSocketAddress(loopback, Integer.parseInt(arguments[0])), 16);
        server.createContext(PATH, exchange -> {
            String text = exchange.getRequestURI().getPath().substring(PATH.length());
            boolean good = text.matches("[1-9][0-9]{0,8}");
            byte[] answer = (good ? factors(Integer.parseInt(text)) : "a number from 1 to 999999999\n")
                    .getBytes(StandardCharsets.US_ASCII);
            exchange.sendResponseHeaders(good ? 200 : 400, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
        System.out.println("Java " + System.getProperty("java.version") + " on " + System.getProperty("os.arch"));
    }

    private static String factors(int number) {
        StringBuilder found = new StringBuilder(number + " =");
        for (int factor = 2; number > 1; factor++) {
            if ((long) factor * factor > number) {
                factor = number;
            }
            for (; number % factor == 0; number /= factor) {
                found.append(' ').append(factor);
            }
        }
        return found.append('\n').toString();
    }
}
