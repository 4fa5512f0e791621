// Package harness gives tests the world outside in processes and sockets of their own: a RabbitMQ node that can be
// killed and started again, and a TCP proxy that cuts, freezes and slows connections. It is for tests alone; nothing
// else may import it.
package harness
