// Command nodeless-controlplane holds the four programs of a Kubernetes control plane in one binary.
//
// The first argument names the program (etcd, kube-apiserver, kube-scheduler or kube-controller-manager);
// the rest are that program's own arguments. One binary links what the four have in common only once.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: nodeless-controlplane etcd|kube-apiserver|kube-scheduler|kube-controller-manager [flags]")
		os.Exit(64)
	}
	program := os.Args[1]
	os.Args = append([]string{program}, os.Args[2:]...)
	commands := map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	}
	if program == "etcd" {
		etcdmain.Main(os.Args)
		return
	}
	command, known := commands[program]
	if !known {
		fmt.Fprintf(os.Stderr, "nodeless-controlplane: no program %q in this binary\n", program)
		os.Exit(64)
	}
	os.Exit(cli.Run(command()))
}
