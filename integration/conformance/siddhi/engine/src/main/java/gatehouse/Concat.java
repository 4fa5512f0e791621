package gatehouse;

import org.wso2.siddhi.core.config.ExecutionPlanContext;
import org.wso2.siddhi.core.executor.ExpressionExecutor;
import org.wso2.siddhi.core.executor.function.FunctionExecutor;
import org.wso2.siddhi.query.api.definition.Attribute;

/** str:concat, whose own module Maven Central does not have. */
public class Concat extends FunctionExecutor {
    @Override
    protected void init(ExpressionExecutor[] args, ExecutionPlanContext context) {
    }

    @Override
    protected Object execute(Object[] data) {
        StringBuilder b = new StringBuilder();
        for (Object o : data) {
            if (o != null) {
                b.append(o);
            }
        }
        return b.toString();
    }

    @Override
    protected Object execute(Object data) {
        return data;
    }

    @Override
    public Attribute.Type getReturnType() {
        return Attribute.Type.STRING;
    }

    @Override
    public void start() {
    }

    @Override
    public void stop() {
    }

    @Override
    public Object[] currentState() {
        return null;
    }

    @Override
    public void restoreState(Object[] state) {
    }
}
