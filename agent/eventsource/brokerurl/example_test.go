package brokerurl_test

import (
	"fmt"

	"gatehouse/agent/eventsource/brokerurl"
)

func ExampleParse() {
	set, err := brokerurl.Parse(
		"amqp://admin:secret@clientid/carbon?failover='roundrobin'&brokerlist='tcp://h1:5672?retries='5'&connectdelay='50';ssl://h2'",
		brokerurl.Defaults{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, b := range set.Brokers {
		fmt.Println(b, b.TLS, b.Retries, b.ConnectDelay)
	}
	// Output:
	// amqp://admin:***@h1:5672/carbon false 5 50s
	// amqps://admin:***@h2:8672/carbon true -1 0s
}
