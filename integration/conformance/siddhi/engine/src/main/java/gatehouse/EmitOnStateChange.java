package gatehouse;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

import org.wso2.siddhi.core.config.ExecutionPlanContext;
import org.wso2.siddhi.core.event.ComplexEventChunk;
import org.wso2.siddhi.core.event.stream.StreamEvent;
import org.wso2.siddhi.core.event.stream.StreamEventCloner;
import org.wso2.siddhi.core.event.stream.populater.ComplexEventPopulater;
import org.wso2.siddhi.core.executor.ExpressionExecutor;
import org.wso2.siddhi.core.query.processor.Processor;
import org.wso2.siddhi.core.query.processor.stream.StreamProcessor;
import org.wso2.siddhi.query.api.definition.AbstractDefinition;
import org.wso2.siddhi.query.api.definition.Attribute;

/** throttler:emitOnStateChange, written anew from its description: traffic-manager.md 4.5. */
public class EmitOnStateChange extends StreamProcessor {
    private final Map<Object, Boolean> last = new HashMap<>();

    @Override
    protected List<Attribute> init(AbstractDefinition definition, ExpressionExecutor[] args, ExecutionPlanContext context) {
        return new ArrayList<>();
    }

    @Override
    protected void process(ComplexEventChunk<StreamEvent> chunk, Processor next, StreamEventCloner cloner, ComplexEventPopulater populater) {
        chunk.reset();
        while (chunk.hasNext()) {
            StreamEvent e = chunk.next();
            Object key = attributeExpressionExecutors[0].execute(e);
            Boolean now = (Boolean) attributeExpressionExecutors[1].execute(e);
            if (Boolean.FALSE.equals(last.get(key)) && !now) {
                chunk.remove();
            } else {
                last.put(key, now);
            }
        }
        if (chunk.getFirst() != null) {
            next.process(chunk);
        }
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
