package peer;

import com.datastax.oss.common.sink.AbstractSinkRecord;
import com.datastax.oss.common.sink.AbstractSinkRecordHeader;
import com.datastax.oss.common.sink.AbstractSinkTask;
import java.util.Collection;
import java.util.Collections;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.kafka.connect.errors.ConnectException;
import org.apache.kafka.connect.sink.ErrantRecordReporter;
import org.apache.kafka.connect.sink.SinkRecord;
import org.apache.kafka.connect.sink.SinkTask;

/** Hands Connect's records to the sink engine, and what it cannot write to Connect's dead letters. */
public class DsSinkTask extends SinkTask {
    private final Engine engine = new Engine();
    private volatile ConnectException failed;

    @Override
    public void start(Map<String, String> properties) {
        engine.start(properties);
    }

    @Override
    public void put(Collection<SinkRecord> records) {
        if (records.isEmpty()) {
            return;
        }
        // Returns when all are written.
        engine.put(records.stream().map(Record::new).collect(Collectors.toList()));
        if (failed != null) {
            ConnectException failure = failed;
            failed = null;
            throw failure;
        }
    }

    @Override
    public void stop() {
        engine.stop();
    }

    @Override
    public String version() {
        return "1";
    }

    private class Engine extends AbstractSinkTask {
        @Override
        protected void handleFailure(AbstractSinkRecord record, Throwable cause, String cql, Runnable count) {
            count.run();
            SinkRecord source = ((Record) record).source;
            ErrantRecordReporter reporter = context.errantRecordReporter();
            if (reporter != null) {
                reporter.report(source, cause);
            } else {
                String place = source.topic() + "-" + source.kafkaPartition() + "@" + source.kafkaOffset();
                failed = new ConnectException("write failed at " + place, cause);
            }
        }

        @Override
        public String version() {
            return "1";
        }

        @Override
        public String applicationName() {
            return "peer";
        }
    }

    private static class Record implements AbstractSinkRecord {
        private final SinkRecord source;

        Record(SinkRecord source) {
            this.source = source;
        }

        @Override
        public Iterable<AbstractSinkRecordHeader> headers() {
            return Collections.emptyList();
        }

        @Override
        public Object key() {
            return source.key();
        }

        @Override
        public Object value() {
            return source.value();
        }

        @Override
        public Long timestamp() {
            return source.timestamp();
        }

        @Override
        public String topic() {
            return source.topic();
        }
    }
}
