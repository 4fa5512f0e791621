package emulator

import "net/http"

func (e *Emulator) control(mux *http.ServeMux) {}
