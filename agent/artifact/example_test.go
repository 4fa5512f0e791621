package artifact_test

import (
	"fmt"

	"gatehouse/agent/artifact"
)

// A definition with faults gives all of them, each with its place and what would be right.
func ExampleFromBytes() {
	_, err := artifact.FromBytes("orders.yaml", []byte(`openapi: 3.0.0
info: {title: Orders, version: 1.0.0}
x-wso2-basePath: orders
x-wso2-production-endpoints:
  urls: [htps://orders.example.com]
paths:
  /orders:
    get:
      x-wso2-throtling-tier: Gold
`), artifact.Options{})
	fmt.Println(err)
	// Output:
	// orders.yaml:3:18: x-wso2-basePath "orders": does not begin with /; write /orders
	// orders.yaml:5:10: x-wso2-production-endpoints.urls[0] "htps://orders.example.com": scheme htps is not served; write https://host[:port]/path
	// orders.yaml:9:7: paths./orders.get.x-wso2-throtling-tier: is no extension at this level; did you mean x-wso2-throttling-tier?
}
