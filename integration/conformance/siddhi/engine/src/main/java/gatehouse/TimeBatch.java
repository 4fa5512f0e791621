package gatehouse;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

import org.wso2.siddhi.core.config.ExecutionPlanContext;
import org.wso2.siddhi.core.event.ComplexEvent;
import org.wso2.siddhi.core.event.ComplexEventChunk;
import org.wso2.siddhi.core.event.stream.StreamEvent;
import org.wso2.siddhi.core.event.stream.StreamEventCloner;
import org.wso2.siddhi.core.event.stream.populater.ComplexEventPopulater;
import org.wso2.siddhi.core.executor.ConstantExpressionExecutor;
import org.wso2.siddhi.core.executor.ExpressionExecutor;
import org.wso2.siddhi.core.query.processor.Processor;
import org.wso2.siddhi.core.query.processor.SchedulingProcessor;
import org.wso2.siddhi.core.query.processor.stream.StreamProcessor;
import org.wso2.siddhi.core.util.Scheduler;
import org.wso2.siddhi.query.api.definition.AbstractDefinition;
import org.wso2.siddhi.query.api.definition.Attribute;

/** throttler:timeBatch in its classic form, written anew from its description: traffic-manager.md 4.3. */
public class TimeBatch extends StreamProcessor implements SchedulingProcessor {
    private long length;
    private long start;
    private boolean aligned;
    private long expire = -1;
    private final List<StreamEvent> kept = new ArrayList<>();
    private Scheduler scheduler;

    @Override
    protected List<Attribute> init(AbstractDefinition definition, ExpressionExecutor[] args, ExecutionPlanContext context) {
        length = number(args[0]);
        if (args.length > 1) {
            aligned = true;
            start = number(args[1]);
        }
        return Arrays.asList(new Attribute("expiryTimeStamp", Attribute.Type.LONG));
    }

    private static long number(ExpressionExecutor e) {
        return ((Number) ((ConstantExpressionExecutor) e).getValue()).longValue();
    }

    @Override
    protected void process(ComplexEventChunk<StreamEvent> chunk, Processor next, StreamEventCloner cloner, ComplexEventPopulater populater) {
        ComplexEventChunk<StreamEvent> out = new ComplexEventChunk<>(true);
        synchronized (this) {
            long now = executionPlanContext.getTimestampGenerator().currentTime();
            if (expire < 0) {
                expire = aligned ? now + length - (now - start) % length : now + length;
                scheduler.notifyAt(expire);
            }
            boolean boundary = now >= expire;
            if (boundary) {
                expire += length;
                scheduler.notifyAt(expire);
            }
            chunk.reset();
            while (chunk.hasNext()) {
                StreamEvent e = chunk.next();
                chunk.remove();
                if (e.getType() != ComplexEvent.Type.CURRENT) {
                    continue;
                }
                populater.populateComplexEvent(e, new Object[]{expire});
                StreamEvent copy = cloner.copyStreamEvent(e);
                copy.setType(ComplexEvent.Type.EXPIRED);
                kept.add(copy);
                out.add(e);
            }
            if (boundary) {
                for (StreamEvent e : kept) {
                    out.add(e);
                }
                kept.clear();
            }
        }
        if (out.getFirst() != null) {
            next.process(out);
        }
    }

    @Override
    public void setScheduler(Scheduler scheduler) {
        this.scheduler = scheduler;
    }

    @Override
    public Scheduler getScheduler() {
        return scheduler;
    }

    @Override
    public void start() {
    }

    @Override
    public void stop() {
    }

    @Override
    public Object[] currentState() {
        return new Object[0];
    }

    @Override
    public void restoreState(Object[] state) {
    }
}
