package event_test

import (
	"errors"
	"fmt"

	"gatehouse/agent/event"
)

func ExampleDecode() {
	events, err := event.Decode(event.Message{
		Topic:       "throttledata", // Andes folds names; every case is the same topic
		ContentType: "text/plain",
		Body: []byte(`{"event":{"payloadData":{"throttleKey":"12:dana@carbon.super","isThrottled":true,` +
			`"expiryTimeStamp":1764000060000,"evaluatedConditions":null}}}`),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range events {
		switch e := e.(type) {
		case event.ThrottleDecision:
			fmt.Println(e.Key, e.Throttled, e.ExpiresAt)
		}
	}
	// Output: 12:dana@carbon.super true 1764000060000
}

// The API Manager does not escape what it puts between quotes, so that some messages are not JSON. What changed is then
// in the lists alone.
func ExampleDecode_unusable() {
	_, err := event.Decode(event.Message{
		Topic:       "throttleData",
		ContentType: "text/plain",
		Body:        []byte(`{"event":{"payloadData":{"blockingCondition":"APPLICATION","conditionValue":"dana:My "Best" App"}}}`),
	})
	if bad, ok := errors.AsType[*event.DecodeError](err); ok {
		fmt.Println("topic:", bad.Topic)
		fmt.Println("fetch its lists again:", bad.Dirty)
	}
	// Output:
	// topic: throttleData
	// fetch its lists again: true
}
